"""Students: networks that learn a teacher's sampling in fewer steps."""
