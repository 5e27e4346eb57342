"""Everything a study found, as one page for a person: answer, figures, tables, provenance."""

from jaxscale.report.page import write_report

__all__ = ["write_report"]
