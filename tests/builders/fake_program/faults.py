"""Seeds of a job that make the fake program fail, hang, never end or evaluate."""

CRASH_AT_STEP_3 = 1001
DIE_SILENTLY = 1002
NEVER_END = 1003
KILLED = 1004
HANG = 1005
GRANDCHILDREN = 1006
TORN = 1007
DISK_FULL = 1008
NOT_A_NUMBER = 1009
SLOW_TO_SAVE = 1010
SLOW_TO_EXIT = 1011
DIVERGED = 1012
LOST_CARD = 1013
EVALUATED = 1014
"""No fault: evaluates at every fifth step, with the lowest loss at a learning rate of 1e-3."""
