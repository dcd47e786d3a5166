// Command vhdfs serves folders of virtual disk images as a file system, and
// works on single images without one.
//
// Commands for operations are made from the table in package ops; the documents
// they print are those of the mount. Exit codes are in docs/exit-codes.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// version is the release that this tree becomes.
const version = "0.1.0"

func main() {
	os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr))
}

// run is the whole program; its result is the exit code.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, interspersed(app, argv))
	var told reported
	var no *answered
	switch {
	case err == nil:
		return 0
	case errors.As(err, &told):
		return told.exit
	case errors.As(err, &no):
		fmt.Fprintln(stderr, "vhdfs: "+err.Error())
		return exitOf(no.errno)
	}
	fmt.Fprintln(stderr, "vhdfs: "+ops.Sentence(err))
	return ops.Classify(err).Exit
}

// reported is a failure that the command has already told about.
type reported struct{ exit int }

func (r reported) Error() string { return fmt.Sprintf("exit code %d", r.exit) }

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                   "vhdfs",
		Usage:                  "virtual disk images (VHD, VHDX, VHD sets, ISO, floppies) as a file system",
		Version:                version,
		Writer:                 stdout,
		ErrWriter:              stderr,
		EnableBashCompletion:   true,
		UseShortOptionHandling: true,
		HideVersion:            true, // there is a command
		OnUsageError:           usageError,
		ExitErrHandler:         func(*cli.Context, error) {}, // run does
		CommandNotFound:        nil,
		Action:                 noCommand,
		Commands: []*cli.Command{
			mountCommand(), umountCommand(), statusCommand(), infoCommand(), lsCommand(),
			documentCommand("chain", "chain.json", chainText),
			documentCommand("map", "map.json", mapText),
			documentCommand("partitions", "partitions.json", partitionsText),
			backupCommand(), restoreCommand(),
		},
	}
	for _, op := range ops.All {
		app.Commands = append(app.Commands, opCommand(op))
	}
	app.Commands = append(app.Commands, completionCommand(), docsCommand(), versionCommand())
	for _, c := range app.Commands {
		c.OnUsageError = usageError
	}
	return app
}

func usageError(_ *cli.Context, err error, _ bool) error { return usagef("%v", err) }

func usagef(format string, args ...any) error { return ops.Errorf(ops.ErrUsage, 0, format, args...) }

func noCommand(c *cli.Context) error {
	if c.NArg() > 0 {
		return usagef("no command %q; see vhdfs help", c.Args().First())
	}
	return cli.ShowAppHelp(c)
}

// positional wants exactly the arguments that are named.
func positional(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	if len(args) < len(names) {
		return nil, usagef("%s is missing: vhdfs %s %s", names[len(args)], c.Command.Name, c.Command.ArgsUsage)
	}
	if len(args) > len(names) {
		return nil, usagef("argument %q is too much: vhdfs %s %s", args[len(names)], c.Command.Name, c.Command.ArgsUsage)
	}
	return args, nil
}
