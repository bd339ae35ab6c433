"""Where the model card and its report answer the items of two reporting guidelines, and what only a laboratory knows.

TRIPOD+AI: Collins et al. 2024, BMJ 385:e078378, doi:10.1136/bmj-2023-078378.
CLAIM, 2024 update: Tejani et al. 2024, Radiology: Artificial Intelligence 6:e240300, doi:10.1148/ryai.240300.

The items are given in few words of this project's own; the guidelines' text is what counts.
"""

from dataclasses import dataclass

UNKNOWN = "not known to the software: to be filled by the laboratory"
RUN, DATA, USE, RESULTS = "How it was made", "Data", "Intended use", "Results"
DECISIONS, LIMITS, METHODS, REPORT = "Decisions", "Limits", "How it was measured", "report.html"


@dataclass(frozen=True)
class Item:
    """One item: its number, what it asks, and where it is answered, empty where the software cannot know."""

    number: str
    asks: str
    answer: str = ""


TRIPOD = (
    Item("1", "title: development or evaluation, population, outcome", "title of this card"),
    Item("2", "abstract", f"{RESULTS}, first paragraph"),
    Item("3a", "healthcare context and reason for the model"),
    Item("3b", "target population, purpose in care, users", f"{USE}; place in care: {UNKNOWN}"),
    Item("3c", "known health inequalities between groups of people"),
    Item("4", "objectives: development, evaluation or both", f"{METHODS}: both, on separate patients"),
    Item("5a", "sources of data, how representative", f"{DATA}; how representative: {UNKNOWN}"),
    Item("5b", "dates of the data"),
    Item("6a", "setting, number and place of centres"),
    Item("6b", "eligibility of participants"),
    Item("6c", "treatments received"),
    Item("7", "preparation and quality checks of the data", f"{DATA}; {METHODS}"),
    Item("8a", "outcome, how and when it was determined", f"{DATA}: the label of the source; how: {UNKNOWN}"),
    Item("8b", "who determined it, their qualification"),
    Item("8c", "blinding of that"),
    Item("9a", "choice of predictors", f"{METHODS}: the pixels of one cell alone"),
    Item("9b", "definition and measurement of predictors", f"{METHODS}; stain and scanner: {UNKNOWN}"),
    Item("9c", "who measured them, where that needs judgement", f"{METHODS}: nobody; segmentation: {UNKNOWN}"),
    Item("10", "sample size and how it was reached", f"{DATA}: what there was, without a calculation"),
    Item("11", "missing data", f"{DATA}: refused images; {METHODS}"),
    Item("12a", "how data were used and parted", DATA),
    Item("12b", "how predictors entered the model", METHODS),
    Item("12c", "type of model, all steps of building, tuning", f"{RUN}; evidence/params.json"),
    Item("12d", "differences between clusters", f"{REPORT}: figures of each patient and source"),
    Item("12e", "measures and plots of performance", f"{METHODS}; {REPORT}"),
    Item("12f", "updating or recalibration", f"{DECISIONS}: temperature"),
    Item("12g", "how predictions are calculated", f"{RUN}: this package computes them"),
    Item("13", "class imbalance", METHODS),
    Item("14", "fairness", f"{LIMITS}: no attribute of a person is known, so none was assessed"),
    Item("15", "output and its thresholds", DECISIONS),
    Item("16", "differences between training and evaluation data", f"{DATA}; {REPORT}: parts of the test cells"),
    Item("17", "ethical approval and consent"),
    Item("18a", "funding"),
    Item("18b", "conflicts of interest"),
    Item("18c", "protocol"),
    Item("18d", "registration of the study"),
    Item("18e", "availability of the data", f"{DATA}: digest; access: {UNKNOWN}"),
    Item("18f", "availability of the code", f"{RUN}: commit"),
    Item("19", "involvement of patients and the public"),
    Item("20a", "flow of participants", f"{DATA}: cells, subjects, refused images, sides"),
    Item("20b", "characteristics of participants"),
    Item("20c", "characteristics of evaluation against development", f"{DATA}: numbers; persons: {UNKNOWN}"),
    Item("21", "participants and outcomes in each analysis", DATA),
    Item("22", "the full model", "weights, graphs and model.json in this package"),
    Item("23a", "performance with intervals, key subgroups", f"{RESULTS}; {REPORT}"),
    Item("23b", "heterogeneity between clusters", f"{RESULTS}: worst quarter; {REPORT}"),
    Item("24", "results of updating", f"{DECISIONS}: calibration error before and after"),
    Item("25", "interpretation, fairness among it", f"{RESULTS}: against the baselines; clinical: {UNKNOWN}"),
    Item("26", "limitations", LIMITS),
    Item("27a", "poor or missing input when used", f"{USE}; Drift reference"),
    Item("27b", "what users must do and know", f"{USE}; training of users: {UNKNOWN}"),
    Item("27c", "next steps of research"),
)

CLAIM = (
    Item("1", "title names the AI technology", "title of this card"),
    Item("2", "abstract", f"{RESULTS}, first paragraph"),
    Item("3", "background, intended use and role", f"{USE}; clinical background: {UNKNOWN}"),
    Item("4", "aims and hypotheses", f"{METHODS}: the network against its baselines"),
    Item("5", "prospective or retrospective", f"{METHODS}: retrospective, on cells that were there"),
    Item("6", "goal of the study", METHODS),
    Item("7", "sources of data", DATA),
    Item("8", "inclusion and exclusion of participants"),
    Item("9", "preprocessing of data", METHODS),
    Item("10", "selection of subsets of the data", f"{METHODS}: one crop a cell, the split"),
    Item("11", "de-identification"),
    Item("12", "missing data", f"{DATA}: refused images"),
    Item("13", "image acquisition"),
    Item("14", "definition of the reference standard"),
    Item("15", "reason for that standard"),
    Item("16", "source of its annotations, qualification of annotators"),
    Item("17", "annotation of the test set", f"{DATA}: as all other cells; tools: {UNKNOWN}"),
    Item("18", "variability within and between annotators"),
    Item("19", "assignment of data to partitions", DATA),
    Item("20", "level at which partitions are disjoint", DATA),
    Item("21", "sample size", f"{DATA}: what there was, without a calculation"),
    Item("22", "the model in detail", f"{RUN}; graphs in this package"),
    Item("23", "software libraries", f"{RUN}: digest of the pinned packages"),
    Item("24", "initial parameters", RUN),
    Item("25", "training", f"{RUN}; evidence/params.json"),
    Item("26", "choice of the final model", f"{METHODS}: who chose it"),
    Item("27", "ensembling", f"{METHODS}: of several networks, and of weights over steps"),
    Item("28", "metrics of performance", METHODS),
    Item("29", "significance and uncertainty", METHODS),
    Item("30", "robustness or sensitivity analysis", f"Under another camera; {REPORT}: by source, cell size and stain"),
    Item("31", "explainability", f"{REPORT}: heat maps of the most certain errors"),
    Item("32", "evaluation on internal data", RESULTS),
    Item("33", "testing on external data", f"{REPORT}: by source, as far as sources were held out"),
    Item("34", "registration of a trial"),
    Item("35", "numbers included and excluded", DATA),
    Item("36", "characteristics of cases in each partition", f"{DATA}: numbers; persons: {UNKNOWN}"),
    Item("37", "performance with uncertainty", f"{RESULTS}; {REPORT}"),
    Item("38", "estimates of diagnostic performance", RESULTS),
    Item("39", "failure analysis", f"{REPORT}: the most certain errors"),
    Item("40", "limitations", LIMITS),
    Item("41", "implications for practice, intended use", f"{USE}; practice: {UNKNOWN}"),
    Item("42", "full protocol"),
    Item("43", "availability of software, model and data", f"{RUN}; this package; data: {UNKNOWN}"),
    Item("44", "funding and the role of funders"),
)


def checklist_table(items: tuple[Item, ...]) -> str:
    """Markdown: one row an item."""
    rows = ["| item | asks for | where |", "|---|---|---|"]
    rows += [f"| {item.number} | {item.asks} | {item.answer or UNKNOWN} |" for item in items]
    return "\n".join(rows)
