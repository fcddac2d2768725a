"""Command lines that make what ships with the repository: teachers, references, classifiers."""
