"""The report's page, made by another process."""

import os
import subprocess
import sys

from tests.images import encoded
from transfer.evaluation.page import render_html


def test_page_is_the_same_bytes_in_every_process(random_predictions, report_of, tmp_path):
    report = report_of(random_predictions(images=80, classes=6))
    thumbnails = {mistake.sha256: encoded(200, 100, kind="JPEG") for mistake in report.mistakes}
    here = render_html(report, thumbnails=thumbnails)
    assert render_html(report, thumbnails=thumbnails) == here

    (tmp_path / "report.json").write_bytes(report.to_json())
    (tmp_path / "image.jpg").write_bytes(encoded(200, 100, kind="JPEG"))
    program = """if True:
        import pathlib, sys
        from transfer.evaluation.page import render_html
        from transfer.evaluation.report import Report
        report = Report.from_json(pathlib.Path("report.json").read_bytes())
        image = pathlib.Path("image.jpg").read_bytes()
        html = render_html(report, thumbnails={mistake.sha256: image for mistake in report.mistakes})
        sys.stdout.buffer.write(html.encode())
    """
    paths = os.pathsep.join([os.getcwd(), *sys.path])  # noqa: PTH109 - as text for the environment
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": paths}
    command = [sys.executable, "-c", program]
    there = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert there.stdout == here.encode()
