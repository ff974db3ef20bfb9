"""flower-chain: begin a run, pay for it, share and keep what is sealed, look at it, check it."""

import typer

from flower_chain.cli import access, accounts, cipher, deploy, look, money, store

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.add_typer(accounts.app, name="keys")
app.add_typer(cipher.app, name="cipher")
app.add_typer(store.app, name="store")
app.command()(deploy.deploy)
app.command()(money.enrol)
app.command()(money.fund)
app.command()(money.withdraw)
app.command()(money.finish)
app.command()(access.grant)
app.command()(access.revoke)
app.command()(look.show)
app.command(name="verify")(look.verify_run)
