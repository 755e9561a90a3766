"""Steps of workflows around outcomes."""
