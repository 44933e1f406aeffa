"""Child program that loads models and answers conversations. Started by core/chat/session.py."""
