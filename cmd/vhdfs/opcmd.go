package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// opCommand is the subcommand of an operation.
func opCommand(op *ops.Op) *cli.Command {
	return &cli.Command{
		Name:        op.Name,
		Usage:       op.Brief,
		ArgsUsage:   subject(op) + " " + op.Synopsis(),
		Description: op.Usage(),
		Category:    "operations",
		Flags:       append(parentFlags(), jsonFlag()),
		Action:      func(c *cli.Context) error { return runOperation(c, op) },
		BashComplete: func(c *cli.Context) {
			for _, a := range slices.Concat(op.Args, ops.Common) {
				fmt.Fprintln(c.App.Writer, a.Key()+"=")
			}
		},
	}
}

// subject is what comes first on the command line: an image, or what an operation of
// the service is about: a file to be made, a place, or the service.
func subject(op *ops.Op) string {
	about := pathOf(op)
	switch {
	case about == nil && op.Service:
		return "MNT"
	case op.Device:
		return "IMAGE|DEVICE"
	case about == nil || about.Kind == ops.ArgPath:
		return "IMAGE"
	case about.Kind == ops.ArgNewPath:
		return "NEW"
	}
	return "PATH"
}

// interruptible is a context that the signals end which ask a program to.
func interruptible(c *cli.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
}

// runOperation carries an operation out. The signals that ask a program to end
// cancel it.
func runOperation(c *cli.Context, op *ops.Op) error {
	if c.NArg() == 0 {
		return usagef("%s is missing: vhdfs %s %s", subject(op), op.Name, c.Command.ArgsUsage)
	}
	ctx, stop := interruptible(c)
	defer stop()
	q, err := newRequest(op, c.Args().First(), c.Args().Tail())
	if err != nil {
		return err
	}
	p := newProgress(c.App.ErrWriter, op.Name)
	answer, err := q.run(ctx, c, p)
	p.end()
	if err != nil {
		return err
	}
	return printAnswer(c, op, answer)
}

// printAnswer tells an answer, its failure on standard error.
func printAnswer(c *cli.Context, op *ops.Op, answer []byte) error {
	var head struct{ Error, Errno string }
	if err := json.Unmarshal(answer, &head); err != nil {
		return fmt.Errorf("answer of %s: %w", op.Name, err)
	}
	if c.Bool("json") {
		var b bytes.Buffer
		if err := json.Indent(&b, answer, "", "  "); err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer, b.String())
	} else if err := answerText(c.App.Writer, op.Name, answer); err != nil {
		return err
	}
	if head.Errno == "" {
		return nil
	}
	fmt.Fprintln(c.App.ErrWriter, "vhdfs: "+head.Error)
	return reported{exitOf(head.Errno)}
}
