"""A trained model on any X-rays: folders of files, and a web page."""

from fx_d2.demo.document import document
from fx_d2.demo.films import FoundFilms, find_films
from fx_d2.demo.folder import Outcome, check_output, predict_files

__all__ = ["FoundFilms", "Outcome", "check_output", "document", "find_films", "predict_files"]
