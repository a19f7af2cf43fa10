"""Studies: recipes x seeds on a dataset and a model, resumable, with tables and a report."""

from prunekit.study.layout import Layout
from prunekit.study.run import StudyError, run_study
from prunekit.study.spec import Cell, Method, Study, with_assignments
from prunekit.study.suite import StudySuite, load_study, names

__all__ = [
    "Cell",
    "Layout",
    "Method",
    "Study",
    "StudyError",
    "StudySuite",
    "load_study",
    "names",
    "run_study",
    "with_assignments",
]
