"""The published figures, one CSV file for each subject, and the code that reads them."""

from pathlib import Path

FOLDER = Path(__file__).parent
