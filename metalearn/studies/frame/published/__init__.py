"""Published figures, one CSV file a subject, and what reads them."""

from pathlib import Path

FOLDER = Path(__file__).parent
