"""The training program. It is copied into every run folder and executed there: `python -m training job.json`.

It imports nothing else of the project, and nothing of the project imports it.
"""
