package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// interspersed moves flags in front of the other arguments of a command, so
// that "vhdfs info disk.vhdx --json" means what it says. After -- nothing is a
// flag. Completion requests are left as they are.
func interspersed(app *cli.App, argv []string) []string {
	if len(argv) < 3 || argv[len(argv)-1] == "--generate-bash-completion" {
		return argv
	}
	cmd := app.Command(argv[1])
	if cmd == nil {
		return argv
	}
	takesValue := map[string]bool{}
	for _, f := range cmd.Flags {
		_, isBool := f.(*cli.BoolFlag)
		for _, name := range f.Names() {
			takesValue[name] = !isBool
		}
	}
	var flags, rest []string
	for args := argv[2:]; len(args) > 0; args = args[1:] {
		a := args[0]
		if a == "--" {
			rest = append(rest, args[1:]...)
			break
		}
		if len(a) < 2 || a[0] != '-' {
			rest = append(rest, a)
			continue
		}
		flags = append(flags, a)
		if takesValue[strings.TrimLeft(a, "-")] && len(args) > 1 {
			flags = append(flags, args[1])
			args = args[1:]
		}
	}
	out := append([]string{argv[0], argv[1]}, flags...)
	return append(append(out, "--"), rest...)
}
