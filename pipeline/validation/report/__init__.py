"""The report of a run: report.html for people, summary.md for a pull request, junit.xml for a build."""

from pipeline.validation.report.write import write_report as write_report
