"""Headers of files that no source takes, by kind, so that declarations can name them as foreign.

They are what field-service tools, call trackers and banks write into such exports, and what the sources' own exports
do not have as a rule.
"""

from __future__ import annotations

LEADS = (
    *("Lead #", "Lead Number", "Lead Status", "Lead Date", "LeadDateTime", "LeadEndDateTime", "Lead Owner"),
    *("Lead Score", "Lead Total", "Converted Lead total", "Estimates"),
)
INVOICES = (
    *("Invoice #", "Invoice Number", "Invoice ID", "Invoice Date", "Invoice Status", "Invoice Total"),
    *("Invoice Amount", "Due Date", "Date Due", "Issued", "Issued Date", "Issue Date", "Date Issued", "Sent"),
    *("Sent Date", "Date Sent", "Balance", "Balance Due", "Days Overdue", "Terms", "Payment Terms"),
)
ESTIMATES = (
    *("Estimate #", "Estimate Number", "Estimate ID", "Estimate Date", "Estimate Status", "Estimate Total"),
    *("Quote #", "Quote Number", "Quote Status", "Valid Until", "Expiration Date", "Expires", "Approved"),
    *("Approved Date", "Declined", "Sold On"),
)
CLIENTS = (
    *("Client #", "Client ID", "Client Number", "Client Since", "Customer #", "Customer ID"),
    *("Customer Number", "Customer Since", "Lifetime Value", "Lifetime Revenue", "Billing Address"),
    *("Billing Street", "Billing City", "Secondary Phone", "Allow Billing", "Last Job", "Last Service Date"),
    *("Total Jobs", "Number of Jobs"),
)
EXPENSES = (
    *("Vendor", "Supplier", "Merchant", "Expense", "Expense #", "Expense Date", "Expense Category"),
    *("Commission", "Hourly Rate", "Clock In", "Clock Out"),
)
BANK_STATEMENTS = (
    *("Running Balance", "Running Bal.", "Posting Date", "Posted Date", "Post Date", "Check or Slip #"),
    "Payee",
    *("Withdrawal", "Withdrawals", "Account Number"),
)
PHONE_LOGS = (
    *("Tracking Number", "Number Name", "Call Status", "Direction", "Call Direction", "Extension"),
    *("Recording", "Recording URL", "Call SID", "Action Result", "Disposition", "Destination", "Ring Time"),
    *("Talk Time", "Hold Time", "Queue", "First-Time Caller", "Rate", "Charge"),
)
