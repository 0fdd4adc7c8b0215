"""One self-contained HTML page from traces, without model or torch: :func:`ra_blip.report.page.write_report`."""
