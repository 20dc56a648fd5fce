"""The command line, the jobs and the reports: the only room that knows every other."""
