"""Child program that loads models and answers conversations.

core/after_training/chat/session.py starts it.
"""
