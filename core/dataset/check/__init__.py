"""Check a dataset: every problem with its line number. Changes nothing."""

from core.dataset.check.check import Examination, check_file, examine
from core.dataset.check.duplicates import find_leak
from core.dataset.check.in_child import check_in_child

__all__ = ["Examination", "check_file", "check_in_child", "examine", "find_leak"]
