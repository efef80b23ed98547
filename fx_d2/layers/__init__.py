"""Building blocks that know nothing of datasets or tasks."""
