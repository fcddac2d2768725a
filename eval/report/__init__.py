"""report.html, one page to look at."""
