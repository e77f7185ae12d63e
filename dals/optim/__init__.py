"""Optimizers to take home: they need torch alone, and know nothing of tasks, records or the paper."""
