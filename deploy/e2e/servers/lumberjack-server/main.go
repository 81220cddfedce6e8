// A Lumberjack v2 server, as Logstash's beats input speaks it: elastic's own, with each event written to a file before its
// batch is acknowledged. Plainly at the first address, by TLS at the second.
package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/elastic/go-lumber/lj"
	"github.com/elastic/go-lumber/server"
)

func main() {
	plain, secure, certificate, key, path := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		log.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		log.Fatal(err)
	}
	batches := make(chan *lj.Batch)
	for address, config := range map[string]*tls.Config{
		plain:  nil,
		secure: {Certificates: []tls.Certificate{pair}},
	} {
		_, err := server.ListenAndServe(address, server.V2(true), server.TLS(config), server.Channel(batches),
			server.Keepalive(time.Second))
		if err != nil {
			log.Fatal(err)
		}
	}
	log.Print("ready")
	out := bufio.NewWriterSize(file, 1<<20)
	lines := json.NewEncoder(out)
	for batch := range batches {
		for _, event := range batch.Events {
			if err := lines.Encode(event); err != nil {
				log.Fatal(err)
			}
		}
		if err := out.Flush(); err != nil {
			log.Fatal(err)
		}
		batch.ACK()
	}
}
