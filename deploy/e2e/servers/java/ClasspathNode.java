// Elasticsearch 7 or OpenSearch 2, started from the jars of Maven Central: one node, plain HTTP, its transport plugin
// from the class path. `PRODUCT` is `elasticsearch` or `opensearch`; `elasticsearch` beside this folder fills it in.
// Arguments: HOME, then settings as KEY=VALUE. With -Dringpilot.stdin=true it ends when its standard input does.

import java.util.List;
import java.util.Map;
import org.PRODUCT.common.settings.Settings;
import org.PRODUCT.env.Environment;
import org.PRODUCT.node.InternalSettingsPreparer;
import org.PRODUCT.node.Node;
import org.PRODUCT.transport.Netty4Plugin;

public class ClasspathNode extends Node {
    ClasspathNode(Environment environment) {
        super(environment, List.of(Netty4Plugin.class), false);
    }

    public static void main(String[] args) throws Exception {
        Settings.Builder settings = Settings.builder().put("path.home", args[0]);
        for (int i = 1; i < args.length; i++) {
            String[] pair = args[i].split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        Environment environment =
                InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), null, () -> "node");
        Node node = new ClasspathNode(environment).start();
        if (Boolean.getBoolean("ringpilot.stdin")) {
            while (System.in.read() >= 0) {}
            node.close();
            System.exit(0);
        }
        Thread.currentThread().join();
    }
}
