"""The same replies under this suite's grader and under those of other packages."""
