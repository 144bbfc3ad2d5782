"""Reports of runs and learners, and the review of label issues, as self-contained HTML pages."""
