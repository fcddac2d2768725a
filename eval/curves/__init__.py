"""What rows of a curves file become: tables, comparisons and pictures. Nothing here samples or
measures."""
