"""The words of each mail, as plain text and HTML; it must not know how mails travel."""

import html
from decimal import Decimal
from typing import Final

from sagapost_contracts import events
from sagapost_email import domain, errors

# reasons come from the saga or, where payment gave a closer one, from the provider
_REASONS: Final = {
    "declined": "Your bank or card issuer declined the payment.",
    "card_declined": "Your bank or card issuer declined the payment.",
    "insufficient_funds": "The payment was declined: there was not enough money on the card.",
    "unknown_payment_method": "The payment provider does not know the way of paying that was chosen.",
    "expired": "The payment did not go through in time.",
    "timeout": "The payment did not go through in time.",
    "provider_timeout": "The payment provider could not complete the payment.",
    "amount_mismatch": "The amount that was charged was not the amount of your order.",
    "provider_reversal": "The payment was reversed by the payment provider.",
    "customer": "You asked us to cancel it.",
    "cancelled": "It was cancelled on request.",
    "refunded": "The payment was given back.",
    "receipt_failed": "We could not reach you at the address that was given.",
    "operator": "Our support team cancelled it.",
}
_OTHERWISE: Final = "It could not be completed."

# Grey with transparency and inherited text colours are legible on a light and on a dark ground alike; nothing is loaded from anywhere.
_LINE: Final = "border-top:1px solid rgba(128,128,128,.35);padding:10px 0;"
_PAGE: Final = """\
<!doctype html>
<html lang="en" style="color-scheme:light dark">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta name="supported-color-schemes" content="light dark">
<title>{title}</title>
</head>
<body style="margin:0;padding:24px 12px;font:16px/1.5 -apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0"><tr><td align="center">
<table role="presentation" cellpadding="0" cellspacing="0"
 style="width:100%;max-width:520px;border:1px solid rgba(128,128,128,.35);border-radius:12px">
<tr><td style="padding:28px 28px 8px">
<p style="margin:0;font-size:13px;letter-spacing:.08em;text-transform:uppercase;opacity:.65">Sagapost</p>
<h1 style="margin:6px 0 12px;font-size:22px;line-height:1.3">{title}</h1>
{paragraphs}
</td></tr>
<tr><td style="padding:8px 28px">
<table width="100%" cellpadding="0" cellspacing="0" style="border-collapse:collapse;font-size:15px">
{rows}
</table>
</td></tr>
<tr><td style="padding:8px 28px 28px;font-size:13px;opacity:.65">{footer}</td></tr>
</table>
</td></tr></table>
</body>
</html>
"""


def render(request: domain.Request) -> domain.Content:
    """Write the mail that a request names.

    Raises:
        errors.UnknownTemplateError: there is none of that name.

    """
    if request.template == events.RECEIPT:
        return _receipt(request)
    if request.template == events.CANCELLATION:
        return _cancellation(request)
    raise errors.UnknownTemplateError(f"there is no mail {request.template!r}")


def _receipt(request: domain.Request) -> domain.Content:
    paragraphs = [f"Thank you. Your payment of {_money(request.amount, request.currency)} for order {request.order_id} went through."]
    footer = [f"Order {request.order_id}"]
    if request.transaction_id:
        footer.append(f"Transaction {request.transaction_id}")
    return _content(request, f"Your receipt for order {request.order_id}", paragraphs, "Total paid", footer)


def _cancellation(request: domain.Request) -> domain.Content:
    paragraphs = [
        f"Your order {request.order_id} was cancelled. {_REASONS.get(request.reason, _OTHERWISE)}",
        _what_became_of_the_money(request),
    ]
    return _content(request, f"Your order {request.order_id} was cancelled", paragraphs, "Order total", [f"Order {request.order_id}"])


def _what_became_of_the_money(request: domain.Request) -> str:
    if request.refunded is None:
        return "You do not pay for it: whatever was charged goes back to you in full."
    if request.refunded == 0:
        return "Nothing was charged."
    return f"{_money(request.refunded, request.currency)} goes back to the way you paid; banks take a few days to show it."


def _content(request: domain.Request, title: str, paragraphs: list[str], total: str, footer: list[str]) -> domain.Content:
    lines = [(f"{_one_line(item.name)}", item.quantity, item.price) for item in request.items]
    sum_text = _money(request.amount, request.currency)
    # a command may come without lines and amount: then the mail does without the table
    rows = [_row(name, quantity, price, request.currency) for name, quantity, price in lines]
    rows += [_total_row(total, sum_text)] if request.amount else []
    text_lines = [
        f"  {quantity} x {name} at {_money(price, request.currency)}: {_money(price * quantity, request.currency)}"
        for name, quantity, price in lines
    ]
    text_lines += [f"  {total}: {sum_text}"] if request.amount else []
    blocks = [title, *paragraphs, "\n".join(text_lines), "\n".join([*footer, "Sagapost"])]
    return domain.Content(
        subject=title,
        text="\n\n".join(block for block in blocks if block) + "\n",
        html=_PAGE.format(
            title=html.escape(title),
            paragraphs="\n".join(f'<p style="margin:0 0 12px">{html.escape(text)}</p>' for text in paragraphs),
            rows="\n".join(rows),
            footer="<br>".join(html.escape(text) for text in footer),
        ),
    )


def _row(name: str, quantity: int, price: Decimal, currency: str) -> str:
    return (
        f'<tr><td style="{_LINE}">{html.escape(name)}<br>'
        f'<span style="font-size:13px;opacity:.65">{quantity} &times; {_money(price, currency)}</span></td>'
        f'<td align="right" valign="top" style="{_LINE}white-space:nowrap">{_money(price * quantity, currency)}</td></tr>'
    )


def _total_row(label: str, amount: str) -> str:
    return (
        f'<tr><td style="{_LINE}font-weight:600">{html.escape(label)}</td>'
        f'<td align="right" style="{_LINE}font-weight:600;white-space:nowrap">{amount}</td></tr>'
    )


def _money(amount: Decimal, currency: str) -> str:
    return f"{amount:,.2f} {html.escape(currency)}"


def _one_line(text: str) -> str:
    """Keep a name from breaking the layout of the plain text."""
    return " ".join(text.split())
