"""A run, or several, as one HTML file that opens without a network.

Charts are drawn by plotly.js, whose "basic" bundle (MIT licence, 1.2 MB) lies beside this file and is put into every
report, so that a report is read in ten years as it is today. Everything else of the page is the template, the style and
the script here; what it shows is JSON made by these modules.
"""
