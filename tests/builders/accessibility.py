"""Look at a page as axe-core does, in the sizes and themes that people use."""

from typing import Literal

from playwright.sync_api import Page

Colours = Literal["light", "dark"]
COLOURS: tuple[Colours, ...] = ("light", "dark")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
FADE_MS = 500
"""Colours fade in."""


def serious_faults(page: Page) -> list[str]:
    """Return what axe-core calls serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_timeout(FADE_MS)
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
