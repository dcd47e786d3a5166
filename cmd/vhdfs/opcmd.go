package main

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// opCommand is the subcommand of an operation.
func opCommand(op *ops.Op) *cli.Command {
	return &cli.Command{
		Name:        op.Name,
		Usage:       op.Brief,
		ArgsUsage:   "IMAGE " + op.Synopsis(),
		Description: op.Usage(),
		Category:    "operations",
		Flags:       append(parentFlags(), jsonFlag()),
		Action: func(c *cli.Context) error {
			if c.NArg() == 0 {
				return usagef("IMAGE is missing: vhdfs %s %s", op.Name, c.Command.ArgsUsage)
			}
			return withTarget(c, c.Args().First(), func(t target) error {
				answer, err := t.do(c.Context, op, c.Args().Tail())
				if err != nil {
					return err
				}
				return printAnswer(c, op, answer)
			})
		},
		BashComplete: func(c *cli.Context) {
			for _, a := range op.Args {
				fmt.Fprintln(c.App.Writer, a.Key()+"=")
			}
		},
	}
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
