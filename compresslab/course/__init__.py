"""What makes notebooks a course: exercises, quizzes, predictions, progress, sources and tables to show."""

from compresslab.course.display import reveal, show, show_source, table
from compresslab.course.exercises import check
from compresslab.course.quiz import quiz
from compresslab.course.session import start

__all__ = ["check", "quiz", "reveal", "show", "show_source", "start", "table"]
