"""nbgrader's settings for these exercises; docs/teaching.md says how to release and grade them."""

from pathlib import Path

config = get_config()  # nbgrader defines it
config.CourseDirectory.course_id = "sr4g"
config.CourseDirectory.root = str(Path(__file__).resolve().parent)
config.GenerateAssignment.force = True  # release/ is in git: else nbgrader skips it, and the gradebook stays empty
config.ExecutePreprocessor.timeout = 120
