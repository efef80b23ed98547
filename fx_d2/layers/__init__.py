"""Building blocks without knowledge of datasets or tasks."""
