"""Which trials a sweep has, and what they show."""
