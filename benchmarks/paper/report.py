"""Reports of the race and of the paper's tables, one entry of `REPORTS` each."""

from __future__ import annotations

from lambdanets.bench import NetworkReport

from .figures import COLOURS, race_figures
from .tables import RACERS, RATES_METHOD, RATIO_METHOD, TABLE4_METHOD, paper_tables, race_tables

COMMAND = "python -m benchmarks.paper"

REPORTS: dict[str, NetworkReport] = {
    "race": NetworkReport(
        command=f"{COMMAND} race",
        tables=race_tables,
        paragraphs=(RACERS, RATIO_METHOD, RATES_METHOD),
        bars_title="The race: time for one image, and peak memory of a batch",
        colours=COLOURS,
        more_figures=race_figures,
    ),
    "table4": NetworkReport(
        command=f"{COMMAND} table4",
        tables=paper_tables,
        paragraphs=(TABLE4_METHOD,),
        bars_title="Table 4: what the 3x3 convolutions of a ResNet-50 are replaced by",
    ),
    "table13": NetworkReport(
        command=f"{COMMAND} table13",
        tables=paper_tables,
        bars_title="Table 13: stages c2 to c5 of a ResNet-50 with convolutions (C) or lambda layers (L)",
    ),
    "table14": NetworkReport(
        command=f"{COMMAND} table14",
        tables=paper_tables,
        bars_title="Table 14: how many lambda layers in c4",
    ),
}
