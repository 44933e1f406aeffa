"""Test the table of several GPUs: what fits, and how many pay."""

from benchmarks.several_gpus import Cell, cell, most_that_pay

MODEL = "meta-llama/Llama-3.1-8B"


def cells(*rates: float) -> list[Cell | None]:
    """Return a cell for each rate; 0 does not fit."""
    return [Cell(2**30, "ddp", rate) if rate else None for rate in rates]


def test_a_model_that_does_not_fit_has_no_cell() -> None:
    assert cell(MODEL, "full", "rtx-4090", 1, 2048) is None


def test_a_divided_model_says_memory_division_and_rate() -> None:
    shown = str(cell(MODEL, "full", "l40s", 4, 2048))
    assert " GiB fsdp " in shown
    assert shown.endswith("/s")


def test_more_cards_pay_as_long_as_they_are_half_as_fast_again() -> None:
    assert most_that_pay(cells(100, 190, 250, 480)) == "2"


def test_the_first_number_that_fits_pays() -> None:
    assert most_that_pay(cells(0, 0, 100, 120)) == "4"


def test_no_number_pays_where_nothing_fits() -> None:
    assert most_that_pay(cells(0, 0, 0, 0)) == "–"
