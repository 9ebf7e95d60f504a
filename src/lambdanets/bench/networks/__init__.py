"""Whole networks: what they cost in memory and time, beside what is published about them."""

from .entries import Entry as Entry
from .entries import Published as Published
from .entries import cost as cost
from .entries import entries as entries
from .entries import read_size as read_size
from .figures import draw as draw
from .lineup import Limits as Limits
from .published import TABLES as TABLES
from .published import racers as racers
from .records import Measured as Measured
from .records import Row as Row
from .records import by_processor as by_processor
from .records import read as read
from .records import write as write
from .running import check as check
from .running import measure as measure
from .tables import make_tables as make_tables
from .tables import markdown as markdown
from .tables import places as places
from .tables import words as words
