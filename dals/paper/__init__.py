"""The paper: its numbers and claims, our tables beside them, and the page that shows both."""
