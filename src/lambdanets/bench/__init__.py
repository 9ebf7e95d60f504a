"""Races: our layer and kernels against what others have, checked first, with provenance on every row."""

from .cases import CASES as CASES
from .cases import GROUPS as GROUPS
from .cases import Case as Case
from .cases import select as select
from .checking import CheckError as CheckError
from .contenders import CONTENDERS as CONTENDERS
from .contenders import Contender as Contender
from .figures import draw_figures as draw_figures
from .measuring import Machine as Machine
from .measuring import measure_machine as measure_machine
from .race import Settings as Settings
from .race import race as race
from .records import Provenance as Provenance
from .records import Record as Record
from .records import provenance as provenance
from .records import read as read
from .records import write as write
from .tables import LEGEND as LEGEND
from .tables import Table as Table
from .tables import make_tables as make_tables
from .tables import markdown as markdown
from .tables import provenance_line as provenance_line
