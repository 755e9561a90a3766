"""Steps of workflows around synthesis."""
