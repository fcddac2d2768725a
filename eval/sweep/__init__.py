"""The sweep: which points are measured, their samples, and the rows they become."""
