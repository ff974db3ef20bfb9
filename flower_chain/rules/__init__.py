"""How a scheme judges, scores and pays: pure functions on numbers."""
