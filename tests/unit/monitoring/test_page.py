"""The drift page over real requests and in a browser: what it says, what it loads, who can use it."""

import json
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from blastwatch.browsers import SECURITY_HEADERS
from blastwatch.errors import BlastwatchError
from blastwatch.settings import load
from monitoring import page as module
from monitoring.metrics import MonitorMetrics
from monitoring.page import FILES, PageServer, build_app
from monitoring.performance import ASSUMES, FEWEST_CELLS, FEWEST_PATIENTS
from monitoring.status import Status
from tests.drift_status import Told, drawn_status
from tests.running import get, post


@pytest.fixture(scope="module")
def statuses(tmp_path_factory):
    """A drifted version, a calm one that is too sure of itself and whose history is away, and other patients."""

    def settings():
        home = str(tmp_path_factory.mktemp("home"))
        return load({"BLASTWATCH_HOME": home, "BLASTWATCH_DRIFT_INTERVAL": "3600"})

    return {
        "drift": drawn_status(settings()),
        "calm": drawn_status(settings(), stained=False, others=False, sure=3.0, reachable=False),
        "patients": drawn_status(settings(), stained=False, cut=True),
        "new": Status(settings(), Told()),
    }


@pytest.fixture
def serve(statuses, free_port):
    """Serves one of them on a free port and gives its address."""
    servers = []

    def start(name):
        port = free_port()
        registry = MonitorMetrics(CollectorRegistry()).registry
        servers.append(PageServer(build_app(registry, statuses[name]), port))
        return f"http://127.0.0.1:{port}"

    yield start
    for server in servers:
        server.close()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("zone", "first", "last", "ticks"),
    [
        ("UTC", "2026-11-01T00:00Z", "2026-11-05T00:00Z", ["1/0", "2/0", "3/0", "4/0", "5/0"]),
        ("UTC", "2026-11-01T00:01Z", "2026-11-05T00:00Z", ["2/0", "3/0", "4/0", "5/0"]),
        # On 6 September no clock there shows midnight.
        ("America/Santiago", "2026-09-04T04:00Z", "2026-09-10T10:00Z", ["4/0", "6/1", "8/0", "10/0"]),
        ("America/Santiago", "2026-09-06T04:00Z", "2026-09-06T20:00Z", ["6/3", "6/6", "6/9", "6/12", "6/15"]),
        # On 29 March none shows two, and on 25 October all show it twice.
        ("Europe/Berlin", "2026-03-28T23:00Z", "2026-03-29T09:00Z", ["29/0", "29/4", "29/6", "29/8", "29/10"]),
        ("Europe/Berlin", "2026-10-24T22:00Z", "2026-10-25T08:00Z", ["25/0", "25/2", "25/4", "25/6", "25/8"]),
    ],
)
def test_the_times_below_a_chart_where_a_day_is_longer_or_shorter(browser, zone, first, last, ticks):
    page = browser.new_page(timezone_id=zone)
    page.add_script_tag(path=Path(module.__file__).with_name("pages") / "charts.js")
    script = """([first, last]) => moments(Date.parse(first), Date.parse(last), 6)
        .map(([time]) => `${new Date(time).getDate()}/${new Date(time).getHours()}`)"""
    assert page.evaluate(script, [first, last]) == ticks
    page.close()


def test_every_answer_has_the_headers_of_the_service(serve):
    url = serve("drift")
    paths = [*FILES, "/drift.json", "/metrics", "/livez", "/"]
    answers = [get(f"{url}{path}") for path in paths]
    assert [answer.status_code for answer in answers] == [200] * (len(paths) - 1) + [307]
    answers += [get(f"{url}/nothing"), get(f"{url}/../pyproject.toml"), post(f"{url}/drift")]
    assert [answer.status_code for answer in answers[-3:]] == [404, 404, 405]
    for answer in answers:
        assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "blastwatch_drift_detected 0.0" in answers[len(FILES) + 1].text
    assert get(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"}).text.endswith("# EOF\n")


def test_the_document_says_what_is_and_since_when(serve, statuses):
    told = get(f"{serve('drift')}/drift.json").json()
    assert (told["state"], told["since"]["at"], told["model"]["version"]) == ("drift", "2026-11-22T12:00:00+00:00", "2")
    assert [column["name"] for column in told["columns"] if column["drifted"]] == [
        "toward_stain",
        "od_red",
        "od_blue",
        "embedding",
    ]
    assert [move["version"] for move in told["promotions"]] == ["1", "2"]
    assert told["performance"]["now"]["labelled"]["check"]["state"] == "open" and told["problem"] is None
    assert told["patients"]["drifted"] and told["patients"]["changes"][0]["name"] == "probability"
    assert statuses["patients"].document()["state"] == "patients"
    calm = statuses["calm"]
    assert (calm.document()["state"], calm.document()["promotions"]) == ("calm", None)
    new = get(f"{serve('new')}/drift.json").json()
    assert (new["state"], new["looked_at"]) == ("waiting", None)


def test_the_pictures_of_the_example_cells_and_no_others_are_given(serve, statuses):
    url, examples = serve("drift"), statuses["drift"].document()["examples"]
    cells = [cell for span in ("now", "before") for end in examples[span].values() for cell in end]
    assert len({cell["id"] for cell in cells}) == 16
    for cell in cells:
        answer = get(f"{url}/cells/{cell['id']}.png")
        assert answer.headers["content-type"] == "image/png" and answer.headers["cache-control"] == "no-store"
        assert answer.content == statuses["drift"].picture(cell["id"])
    assert get(f"{url}/cells/{'0' * 31}f.png").status_code == 404
    assert get(f"{serve('new')}/cells/{cells[0]['id']}.png").status_code == 404


def test_the_report_behind_the_verdict_is_given_and_its_scripts_reach_nothing(tmp_path, free_port):
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    status, page = drawn_status(settings), settings.drift / "drift-20261124T120000.000000Z-v2.html"
    assert status.document()["report"] is None  # of old reports only the JSON is kept
    page.write_text("<script>document.title = 'drawn'</script>")
    (tmp_path / "drift-outside.html").write_text("")
    report = json.loads(page.with_suffix(".json").read_text()) | {"report": str(page)}
    status.judge(report)
    status.fail("")
    server = PageServer(build_app(MonitorMetrics(CollectorRegistry()).registry, status), port := free_port())
    url = f"http://127.0.0.1:{port}"
    try:
        told = get(f"{url}/drift.json").json()
        answer = get(f"{url}/{told['report']}")
        assert (answer.status_code, answer.text) == (200, page.read_text())
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts; default-src 'none'") and "'self'" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        for name in (
            page.with_suffix(".json").name,
            "..%2fdrift-outside.html",
            "drift-outside.html",
            "*",
            "drift-*.html",
        ):
            assert get(f"{url}/reports/{name}").status_code == 404, name
    finally:
        server.close()


def test_a_page_from_elsewhere_reads_no_cell_and_whoever_scrapes_is_answered(serve, statuses):
    url, port = serve("drift"), urlsplit(serve("drift")).port
    cell = statuses["drift"].document()["examples"]["now"]["farthest"][0]["id"]
    told = ["/drift.json", f"/cells/{cell}.png", "/reports/drift-20261124T120000.000000Z-v2.html", "/nothing"]
    for foreign in (
        {"Host": "evil.example"},  # its name leads here by now
        {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        {"Host": f"127.0.0.1.evil.example:{port}"},
        {"Host": f"0.0.0.0:{port}"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        answers = [get(f"{url}{path}", headers=foreign) for path in told]
        assert [answer.status_code for answer in answers] == [403] * len(told), foreign
        assert {name: answers[0].headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        # Probes and Prometheus ask by whatever address they have, and a link from elsewhere leads to the page.
        assert [get(f"{url}{path}", headers=foreign).status_code for path in ("/metrics", "/livez", "/drift")] == [
            200
        ] * 3
    refused = get(f"{url}/drift.json", headers={"Host": "cells.lab"}).text
    assert refused.startswith(
        "Expected a name or address of the loopback in `Host` but got 'cells.lab'. A proxy before"
    )
    linked = get(f"{url}{told[2]}", headers={"Sec-Fetch-Site": "cross-site"}).text
    assert "Open /drift of this monitor" in linked and "proxy" not in linked
    for own in ({"Host": f"localhost:{port}"}, {"Host": "[::1]"}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": url}):
        assert [get(f"{url}{path}", headers=own).status_code for path in told[:2]] == [200] * 2, own


def test_a_head_that_does_not_end_is_cut_off(serve):
    with socket.create_connection(("127.0.0.1", urlsplit(serve("new")).port), timeout=10) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(ConnectionError):  # from the moment on when nobody reads any more
            for _ in range(2000):
                connection.sendall(b"a: b\r\n" * 1000)
            pytest.fail("12 MB of a head were taken")


def test_a_failed_look_keeps_what_was_known_and_says_why(statuses, tmp_path):
    status = drawn_status(load({"BLASTWATCH_HOME": str(tmp_path)}))
    status.fail("the database is away")
    assert status.document()["problem"] == "the database is away" and status.document()["state"] == "drift"


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BlastwatchError, match="cannot be bound .* set BLASTWATCH_MONITOR_PORT"):
            PageServer(lambda *_: None, other.getsockname()[1])


@pytest.mark.browser
def test_the_page_in_a_browser(serve, browser, tmp_path):
    url, asked, faults = serve("drift"), [], []
    for width in (400, 1280):
        page = browser.new_page(viewport={"width": width, "height": 900}, timezone_id="UTC", locale="en-GB")
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        page.goto(f"{url}/drift")
        page.get_by_text("Drift since 22 Nov 2026, 12:00: version 2 sees other cells than it knows.").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=tmp_path / f"drift-{width}.png", full_page=True)
    words = page.inner_text("body")
    assert "Research software, not a medical device." in words and "trained on synthetic cells" in words
    assert "4 of 24 are beyond their threshold, signs of another stain (toward_stain) farthest." in words
    assert (
        "The cells have drifted and the patients are others, and" in words
        and "before the latest labelled cells are all of since then" in words
    )
    assert "by drift of version 2: it ended well: look for a candidate to promote" in words
    assert "neither confirmed nor refuted" in words and "Intervals by patient: patients are independent;" in words
    assert (
        "Darkness in red light (od_red) moved most among the image statistics; nine of ten known cells lie "
        "between 0.207 and 0.281" in words
    )
    cells = page.locator(".cells[role=group]").all()
    assert [row.get_attribute("aria-label") for row in cells] == [
        f"{end}, {span}" for end in ("Farthest", "Nearest") for span in ("in this window", "before the drift")
    ]
    pictures = page.locator(".cells img").all()
    for picture in pictures:
        picture.scroll_into_view_if_needed()
        page.wait_for_function(
            "picture => picture.complete && picture.naturalWidth === 450", arg=picture.element_handle()
        )
        assert picture.get_attribute("alt").startswith("Cell 0000")
    assert len(pictures) == 16
    # For a screen reader: pictures say in words what they show, and what is announced stands in live regions.
    charts = page.locator(".chart").get_by_role("img").all()
    assert ["2 moves of the champion" in charts[0].get_attribute("aria-label"), len(charts)] == [True, 2]
    assert page.get_by_role("status").count() == 2 and page.get_by_role("heading", level=2).count() == 6
    # By keyboard: the first stop leads past the head, every table that may scroll and every fold can be reached.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to what is now"
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert {"Performance now", "The same as tables", "The other statistics"} <= reached
    page.get_by_text("The same as tables").press("Enter")
    page.get_by_role("region", name="Moves of the champion").wait_for()
    assert page.locator(".chart .move").count() == 2 and page.locator(".chart .beyond").count() == 14
    page.goto(f"{serve('calm')}/drift")
    page.get_by_text("No drift since 12 Nov 2026").wait_for()
    words = page.inner_text("body")
    assert "do not rely on it" not in words and "No picture of a cell is kept (BLASTWATCH_KEEP_IMAGES)" in words
    assert "Do not trust the estimate" in words and "history of the registry cannot be read" in words
    assert "56 patients count, and 36 are known to the version. 1 patient is here and counts 60 minutes after" in words
    assert "which is too few to count. No column says that they are other" in words
    page.goto(f"{serve('patients')}/drift")
    page.get_by_text("Other patients since 15 Nov 2026, 12:00 or before: no drift in the latest window, but").wait_for()
    page.screenshot(path=tmp_path / "patients.png", full_page=True)
    words = page.inner_text("body")
    assert (
        "which is too few to count. Probability of a blast (probability) is other since 15 Nov 2026, 12:00 or before."
        in words
    )
    assert "The patients are others, and the estimate takes for granted that the probabilities still hold" in words
    page.get_by_text("Every change that was found").press("Enter")
    changes = page.get_by_role("region", name="Changes of patients").inner_text()
    assert "it stands" in changes and "15 Nov 2026, 12:00 or before" in changes
    page.goto(f"{serve('new')}/drift")
    page.get_by_text("The monitor has not looked yet.").wait_for()
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["Now"]
    assert not faults
    assert all(address.startswith(("http://127.0.0.1:", "data:")) for address in asked)


@pytest.mark.browser
def test_before_the_first_champion_nothing_is_shown_of_it_and_nothing_runs_out_of_a_small_screen(
    browser, free_port, tmp_path
):
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path)}), Told())
    server = PageServer(build_app(MonitorMetrics(CollectorRegistry()).registry, status), port := free_port())
    page = browser.new_page(viewport={"width": 400, "height": 900})
    try:
        status.begin(f"Nothing to watch yet: sqlite:////{'a' * 60}/mlflow.db")
        status.fail(f"This look failed: http://{'b' * 60}.example")
        page.goto(f"http://127.0.0.1:{port}/drift")
        page.get_by_text("Nothing to watch yet").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.get_by_role("heading", level=2).all_inner_texts() == ["Now"]
        assert page.get_by_role("table").count() == 0 and page.get_by_role("link", name="The whole report").count() == 0
    finally:
        server.close()


@pytest.mark.browser
def test_patients_who_do_not_count_yet_and_intervals_by_cell_are_said(browser, free_port, tmp_path):
    status = drawn_status(load({"BLASTWATCH_HOME": str(tmp_path)}), stained=False, others=False)
    server = PageServer(build_app(MonitorMetrics(CollectorRegistry()).registry, status), port := free_port())
    page = browser.new_page()
    patients, told = status.document()["patients"], status.document()["performance"]
    by_cell = [told["windows"][0] | {"unit": "cell", "assumes": ASSUMES["cell"]}, *told["windows"][1:]]

    def shown(entered, waiting, few):
        status.see(
            patients=patients | {"entered": entered, "waiting": waiting, "few": few},
            performance=told | {"windows": by_cell},
        )
        status.fail("")
        page.goto(f"http://127.0.0.1:{port}/drift")
        page.locator("#patient-words:not(:empty)").wait_for()
        return page.inner_text("#patient-words")

    try:
        assert shown(0, 8, 0) == "8 patients are here; each counts 60 minutes after the first cell."
        assert shown(0, 0, 2) == "2 patients had fewer than 10 cells in that time, which is too few to count."
        assert shown(0, 0, 0).startswith("No patient has been counted yet: callers give a patient key")
        assert shown(1, 0, 0).startswith("1 patient counts, and 36 are known to the version. No column says")
        words = page.inner_text("#assumes")
        assert "Intervals by patient: " in words and "Intervals by cell: cells are independent, which cells" in words
        page.get_by_text("The windows as a table").press("Enter")
        table = page.get_by_role("region", name="Performance by window")
        assert table.locator("thead th").all_inner_texts()[5] == "intervals by"
        units = [row.locator("td").nth(4).inner_text() for row in table.locator("tbody tr").all()]
        assert units == ["patient"] * (len(by_cell) - 1) + ["cell"]
        now = page.get_by_role("region", name="Performance now").locator("tbody tr").last
        assert now.inner_text().split() == ["intervals", "by", "patient", "patient", "patient"]
    finally:
        server.close()


@pytest.mark.browser
def test_windows_are_named_by_their_day_in_utc_and_those_that_are_cut_are_said(browser, free_port, tmp_path):
    status = drawn_status(load({"BLASTWATCH_HOME": str(tmp_path)}))
    server = PageServer(build_app(MonitorMetrics(CollectorRegistry()).registry, status), port := free_port())
    page = browser.new_page(timezone_id="America/New_York", locale="en-GB")
    told, faults = status.document()["performance"], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    latest, labelled = told["now"]["latest"], told["now"]["labelled"]

    def lacking(what):
        return {"patients": 4, "labelled": 29, "check": labelled["check"] | {"state": "open", "lacks": what}}

    keyless = told["now"] | {"labelled": labelled | {"unit": "cell", "assumes": ASSUMES["cell"]} | lacking("keys")}
    older = told["windows"][0] | {"cut": True, "cells": 0, "estimated": {}}
    cut = [older, told["windows"][1] | {"cut": True}, *told["windows"][2:]]

    def shown(performance):
        status.see(performance=performance)
        status.fail("")
        page.goto(f"http://127.0.0.1:{port}/drift")
        page.locator("#check:not(:empty)").wait_for()
        page.get_by_text("The windows as a table").press("Enter")
        table = page.get_by_role("region", name="Performance by window")
        return [row.locator("th, td").all_inner_texts() for row in table.locator("tr").all()]

    try:
        head, *rows = shown(told)
        assert head[0] == "from (UTC)" and rows[-1][:2] == ["22 Oct", str(told["windows"][0]["cells"])]
        assert told["windows"][0]["since"] == "2026-10-22T00:00:00+00:00" and page.inner_text("#cut") == ""
        now = page.get_by_role("region", name="Performance now").locator("tbody tr").all()
        span = [row.locator("td").all_inner_texts() for row in now if row.locator("th").inner_text() in ("from", "to")]
        assert labelled["since"].startswith("2026-11-08T19:57") and span[0][1] == "8 Nov 2026, 14:57"
        assert latest["until"].startswith("2026-11-24T11:43") and span[1][0] == "24 Nov 2026, 06:43"
        _, *rows = shown(told | {"windows": cut, "now": keyless, "truncated": True})
        assert rows[-1][:3] == ["22 Oct", "not read", "unknown"] and rows[-1][4] != "unknown"
        assert rows[-2][:2] == ["29 Oct", f"latest {cut[1]['cells']}"] and rows[-3][1] == str(cut[2]["cells"])
        said = f"the window from 29 Oct is of its latest {cut[1]['cells']} cells, and of windows before it the labelled"
        assert said in page.inner_text("#cut")
        chart = page.locator("#windows").get_by_role("img").get_attribute("aria-label")
        assert chart.startswith("Accuracy of 5 windows: estimated in 4, realised in 4.")
        no_verdict = "No verdict on the estimate, since"
        assert page.inner_text("#check").startswith(f"{no_verdict} fewer than half of the labelled cells carry a")
        page.screenshot(path=tmp_path / "cut.png", full_page=True)
        shown(told | {"now": told["now"] | {"labelled": labelled | lacking("patients")}})
        few = f"{no_verdict} the labelled cells are of 4 patients and {FEWEST_PATIENTS} are needed: realised"
        assert page.inner_text("#check").startswith(few)
        shown(told | {"now": told["now"] | {"labelled": labelled | lacking("cells")}})
        few = f"{no_verdict} 29 cells have labels and {FEWEST_CELLS} are needed: realised"
        assert page.inner_text("#check").startswith(few)
        assert not faults
    finally:
        server.close()
