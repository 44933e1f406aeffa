"""Tailor without a face: jobs, estimates, data and runs in plain Python. Never imports gradio."""
