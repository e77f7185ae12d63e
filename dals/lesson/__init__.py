"""The running problem of the chapters, and the smallest step."""
