"""The report is one file, true to the figures, and opens in a real browser without a word of complaint."""

import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from pipeline import files
from pipeline.artifacts import Run, StageRecord
from pipeline.data.dataset import to_jsonl
from pipeline.export.choose import Candidate, Choice, Difference
from pipeline.validation.evaluate import _lines, judge_all
from pipeline.validation.figures import compare, figures
from pipeline.validation.report import write_report
from pipeline.validation.report.page import verdict
from pipeline.validation.report.replies import best, locate, read, worst
from tests.validation.samples import conversation, replies

GAMES = [conversation(number, category=("stealth", "combat")[number % 2]) for number in range(6)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Written into a copy of the page: what a test asks of it comes back as the document's title.
PROBE = """<script>addEventListener("load", () => { const d = document.documentElement;
document.title = JSON.stringify({wide: d.scrollWidth, window: d.clientWidth, plots: document.querySelectorAll("svg").length}); });</script>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("run"))
    ours = [
        reply
        for game in GAMES
        for reply in replies(game, {2: "Hush <b>now</b>.\n\n[roll: arcana]"} if game is GAMES[0] else None)
    ]
    base = [reply for game in GAMES for reply in replies(game, {2: "Hm.", 6: "Hm. " * 40})]
    judged, judged_base = judge_all(ours, GAMES), judge_all(base, GAMES)
    result = figures(judged)
    result["baseline"] = figures(judged_base) | {"comparison": compare(judged, judged_base)}
    files.write_json(run.validation / "validation.json", result)
    files.write_text(run.validation / "generations.jsonl", _lines("model", ours) + _lines("baseline", base))
    files.write_text(run.data / "dataset.jsonl", to_jsonl(GAMES))
    steps = [
        {"step": step, "loss": 3 / step, "held_out_loss": 3.1 / step if step % 5 == 0 else None}
        for step in range(1, 21)
    ]
    files.write_text(run.training / "metrics.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
    agreement = {"mean_kl": 0.01, "top1": 0.95, "positions": 60, "histogram": [1, 2, 40, 10, 5, 1, 1, 0]}
    edges = ["0.0", "1e-08", "1e-06", "0.0001", "0.001", "0.01", "0.1", "1.0", "inf"]
    files.write_json(run.export / "parity.json", {"quantised_against_f16": agreement, "histogram_edges": edges})
    files.write_bytes(run.export / "model-Q4_K_M.gguf", b"x" * 100_000)
    return run


@pytest.fixture(scope="module")
def text(run):
    return write_report(run, [], title="custom-dnd-tiny", lineage={"base": "tiny"}).read_text()


def test_the_page_needs_nothing_from_outside(text):
    assert not re.search(r"<(?:script|link|img|iframe)\b", text)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert "url(http" not in text


def test_the_verdict_and_the_figures_stand_at_the_top(text):
    assert text.index("Good enough to ship") < text.index("95.8 %") < text.index("<h2>")


def test_a_refused_model_is_called_so_with_its_reasons(run):
    page = write_report(run, ["it is <too> large"], title="t", lineage={}).read_text()
    assert "Not shipped." in page
    assert "it is &lt;too&gt; large" in page
    assert "it is <too> large" in (run.validation / "summary.md").read_text()
    failure = ElementTree.parse(run.validation / "junit.xml").find(".//failure")
    assert failure is not None
    assert failure.get("message") == "it is <too> large"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({}, "Good enough to ship."),
        ({2: "Hush."}, "Passed the gate; players will meet its mistakes."),
        ({2: "Hush.", 6: "Ouch."}, "not for players"),
    ],
)
def test_the_verdict_praises_no_further_than_the_accuracy_carries(texts, words):
    result = figures(judge_all([reply for game in GAMES for reply in replies(game, texts)], GAMES))
    assert words in verdict(result, [])
    assert words not in verdict(result, ["too large"])
    assert "without a gate" in verdict(result, None)


def test_what_was_not_measured_is_said_so(text):
    assert "did not play in this run" in text
    assert "No other client was asked" in text


def test_the_unshrunk_file_the_choice_and_the_other_client_are_shown(run):
    result = files.read_json(run.validation / "validation.json")
    turn = {"player": "I hide.", "shown": "Dark & cold.", "results": ["stealth: 3 + 2(skill) = *5*"]}
    other = {"state": "played", "reason": "tiny client 1.0 loads the file", "turns": [turn]}
    files.write_json(run.validation / "validation.json", result | {"exact": result["baseline"], "runtime_check": other})
    kinds = [Candidate("Q4_K_M", 100_000_000, 0.04, 0.95, Difference(-0.01, -0.03, 0.01), 20.0, "taken")]
    kinds += [Candidate("Q8_0", 140_000_000, None, None, None, None, "not tried")]
    choice = Choice("Q4_K_M", run.export / "model-Q4_K_M.gguf", kinds).report()  # where the export puts it: its facts
    run.record("export", StageRecord("key", {}, 1.0, {"quantization": "Q4_K_M", "choice": choice}))
    try:
        page = write_report(run, [], title="t", lineage={}, how_to='modelPath: "./x.gguf"').read_text()
    finally:
        files.write_json(run.validation / "validation.json", result)
        run.manifest_path.unlink()
    for words in (
        "unshrunk (f16)",
        "Q4_K_M, taken",
        "Dark &amp; cold.",
        "tiny client 1.0",
        "modelPath: &quot;./x.gguf",
    ):
        assert words in page
    assert "Q8_0" not in page
    assert "tiny client 1.0" in (run.validation / "summary.md").read_text()


def test_what_a_model_says_is_never_markup(text):
    assert "<b>now</b>" not in text
    assert "&lt;b&gt;now&lt;/b&gt;" in text


def test_the_same_run_gives_the_same_page(run, text):
    assert write_report(run, [], title="custom-dnd-tiny", lineage={"base": "tiny"}).read_text() == text


def test_worst_replies_are_the_wrong_ones_and_best_ones_are_varied(run):
    shown = read(run.validation / "generations.jsonl", run.data / "dataset.jsonl")
    assert [item.reply.conversation for item in worst(shown)] == [GAMES[0].id]
    assert len({item.reply.conversation for item in best(shown, 5)}) == 5


def test_a_reply_is_found_at_its_line(tmp_path):
    from dataclasses import replace

    file = tmp_path / "game.md"
    file.write_text("# SYSTEM\nRole\n\n# CONVERSATION\n## DM\nThe guard yawns at the wrong moment.\n")
    reply = replies(GAMES[0])[0]
    assert locate(replace(reply, source=str(file))) == f"{file}:6"
    assert locate(reply) == f"{reply.source}:1"


def test_the_build_gets_a_case_for_each_game(run, text):
    tree = ElementTree.parse(run.validation / "junit.xml")
    assert len(tree.findall(".//testsuite[@name='held-out games']/testcase")) == len(GAMES)


needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium on this machine (Debian: apt-get install chromium)"
)


def open_in_browser(text, width, folder):
    """What the page measures of itself in a window of `width`, and what the browser had to complain about."""
    loose = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (folder / "report.html").write_text(loose.replace("</body>", PROBE + "</body>"))
    frame = folder / "frame.html"  # headless windows have a least width of their own; a frame has not
    frame.write_text(
        f'<iframe src="report.html" style="width:{width}px;height:800px;border:0"></iframe><script>addEventListener("load", () => '
        'setTimeout(() => document.body.append(document.querySelector("iframe").contentDocument.title), 50))</script>'
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    answer = re.search(r"\{.*?\}", done.stdout.rsplit("</script>", 1)[1].replace("&quot;", '"'))
    assert answer is not None
    return json.loads(answer[0]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_it_without_complaint_and_without_scrolling_sideways(text, width, tmp_path):
    found, complaints = open_in_browser(text, width, tmp_path)
    assert complaints == []
    assert found["wide"] <= found["window"] <= width
    assert found["plots"] >= 6


@needs_browser
def test_a_page_that_is_too_wide_or_faulty_is_noticed(text, tmp_path):
    spoilt = text.replace("</body>", '<div style="width:900px">x</div><script>missing()</script></body>')
    found, complaints = open_in_browser(spoilt, 390, tmp_path)
    assert complaints
    assert found["wide"] > found["window"]
