"""The documentation as a site: what mkdocs builds of it, strictly."""

import re

import pytest

from tests.documentation import PAGES, ROOT, headings

PAGE_OF = {page: "index.html" if page.stem == "README" else f"{page.stem}.html" for page in PAGES}
OF_ANOTHER_HOST = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the site."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_a_page_has_the_anchors_that_it_has_on_github(site, page):
    html = (site / PAGE_OF[page]).read_text(encoding="utf-8")
    assert headings(page) <= set(re.findall(r'<h[1-6] id="([^"]+)"', html))


def test_pages_load_nothing_from_another_host(site):
    pages = sorted(site.glob("**/*.html"))
    assert len(pages) > len(PAGES)
    assert [found for page in pages for found in OF_ANOTHER_HOST.findall(page.read_text(encoding="utf-8"))] == []
    styles = sorted(site.glob("**/*.css"))
    assert [file.name for file in styles if re.search(r"url\(['\"]?(https?:)?//|@import", file.read_text())] == []
