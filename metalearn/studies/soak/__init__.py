"""Long trainings in constant memory."""
