"""The training program: data, steps, the loop over them, and what a run leaves behind."""
