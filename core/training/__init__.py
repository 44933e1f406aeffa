"""Training program. Copied into every run folder and executed there: `python -m training job.json`.

It imports nothing else of the project, and of it the rest of the project imports only `contract`.
"""
